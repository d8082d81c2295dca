"""Serving what was found: gateway, recorder, shadow, analysis, the daemon."""
