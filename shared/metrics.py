"""Numbers every process shows at /metrics. A service adds its own beside its domain."""

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.responses import Response

REQUESTS = Histogram(
    "lyceum_http_request_seconds",
    "Time to answer a request",
    ["service", "method", "route", "status"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
JOBS = Histogram(
    "lyceum_job_seconds",
    "Time a job ran",
    ["service", "job", "outcome"],
    buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800),
)
NOTES_DELIVERED = Counter(
    "lyceum_notes_delivered", "Notes other services acknowledged", ["receiver"]
)
EVENTS_PUBLISHED = Counter("lyceum_events_published", "Events put on a stream", ["service"])
NOTES_FAILED = Counter("lyceum_notes_failed", "Notes a receiver refused for good")


def page() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
