"""user_tasks."""
