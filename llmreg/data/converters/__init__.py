"""From the folders of public downloads to raw datasets; one module a dataset."""
