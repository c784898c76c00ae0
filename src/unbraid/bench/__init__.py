"""Our model beside its rivals: the same weights, the same inputs, outputs that agree before anything is timed."""
