"""Web page and HTTP API for the predictions of a run."""
