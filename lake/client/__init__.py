"""The client for services: logs a model's predictions without ever blocking the prediction path.

from lake.client import Client
client = Client("http://127.0.0.1:8501")
client.log(image_bytes, model="cells", model_version="3", label="cracked", confidence=0.93)
"""

from __future__ import annotations

from lake.client.client import AsyncClient, Client
from lake.client.core import Stats
from lake.client.events import Refusal
from lake.client.json_requests import RequestFailed
from lake.client.model_requests import NotAnswered, Predicted
from lake.client.predictions import LoggedPrediction

__all__ = ["LoggedPrediction", "AsyncClient", "Client", "NotAnswered", "Predicted", "Refusal", "RequestFailed", "Stats"]
