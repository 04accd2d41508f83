"""The server: the model for other programs, over HTTP in the form of OpenAI's completions API."""
