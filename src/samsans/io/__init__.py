"""Images, volumes and DICOM in and out, geometry kept."""
