"""The training loop, which knows neither tasks nor pretraining."""
