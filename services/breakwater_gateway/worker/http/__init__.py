"""The HTTP client's parts; `worker/http_client.py` is what others import."""
