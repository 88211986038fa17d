"""What the tests of handlers are about: orders."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from synckit_streams import App, Draft


class OrderPlaced(BaseModel):
    order_id: str
    total_cents: int


def placed(number: int, **more: Any) -> Draft:
    return Draft("orders", "order.placed", f"o-{number}", {"order_id": f"o-{number}", "total_cents": number}, **more)


def app_of(**more: Any) -> App:
    return App("billing", store="memory:", **more)
