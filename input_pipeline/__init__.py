"""Data: which example comes when, and its bytes."""
