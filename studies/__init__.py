"""What the notebooks tell: studies of the record and of our detectors, beside the library and not shipped with it."""
