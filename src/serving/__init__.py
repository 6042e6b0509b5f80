"""A finished model as an endpoint: the OpenAI API over HTTP, requests that arrive together in one batch."""
