"""Bytes to tensors: decoding, DICOM, transforms, augmentation, finding copies, splits and the quality report."""
