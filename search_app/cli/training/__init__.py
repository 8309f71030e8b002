"""Commands that work on models: training, evaluation, registry, predictions."""
