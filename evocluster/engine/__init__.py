"""The engine room: carries a search out, one proposal at a time, and keeps every trial before it counts."""
