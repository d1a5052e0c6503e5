"""What trains: feeding, the runs of pretraining and fine-tuning, folds, frozen features."""
