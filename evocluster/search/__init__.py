"""Decides what to try next: space, operators, selection, objectives, budget, optimizer; pure, given an LLM."""
