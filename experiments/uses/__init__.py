"""Commands that use trained models: each writes a record, and a picture, beside the model."""
