"""Trained models: saved, loaded, exported, used as embedders."""
