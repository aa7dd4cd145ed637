"""Unit tests: one concept a file, each proven on asyncio's own loop before it judges mioloop."""
