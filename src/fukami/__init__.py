"""fukami: every landmark of deep vision under one contract."""
