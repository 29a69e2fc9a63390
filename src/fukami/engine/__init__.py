"""What trains, evaluates, saves and loads any task."""
