"""The web page and the HTTP API over ``Task.predict``."""
