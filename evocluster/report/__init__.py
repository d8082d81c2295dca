"""The report room: tables and pictures from what a run stored."""
