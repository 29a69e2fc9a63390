"""Images and videos: reading, transforming and drawing."""
