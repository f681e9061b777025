"""The OpenAI dialects."""
