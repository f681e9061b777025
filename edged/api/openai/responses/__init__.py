"""OpenAI's Responses API: items → Generate, events → response objects, and the state between."""
