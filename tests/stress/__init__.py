"""Tests that repeat, crowd and starve: what goes wrong once in a thousand times has to go wrong here."""
