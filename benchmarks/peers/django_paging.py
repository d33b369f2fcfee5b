"""Pages as the platform's API has them: numbered, with a count of all rows."""

from rest_framework.pagination import PageNumberPagination  # type: ignore[import-not-found]


class Pages(PageNumberPagination):  # type: ignore[misc]
    page_size = 10
    page_size_query_param = "page_size"
    max_page_size = 100
