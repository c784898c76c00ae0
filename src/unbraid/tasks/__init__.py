"""Fine-tuning tasks: labelled data, an objective and its metrics."""
