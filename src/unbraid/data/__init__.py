"""Small real samples for the demo and the tests, each with its licence beside it."""
