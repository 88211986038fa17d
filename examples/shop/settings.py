"""Where the broker and the databases are: as the environment says, or as it is with nothing but this package."""

import os

BROKER = os.environ.get("BROKER", "nats://127.0.0.1:4222")
ORDERS_STORE = os.environ.get("ORDERS_STORE", "sqlite:///orders.db")
BILLING_STORE = os.environ.get("BILLING_STORE", "sqlite:///billing.db")
SALES_FILE = os.environ.get("SALES_FILE", "sales.db")
