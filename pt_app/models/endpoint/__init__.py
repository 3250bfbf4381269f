"""The client for OpenAI-compatible endpoints: requests, replies, a budget and a journal."""
