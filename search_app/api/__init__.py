"""The HTTP API: /v1 for data; /healthz, /readyz and /metrics for operators."""
