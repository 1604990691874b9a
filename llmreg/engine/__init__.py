"""Registration without training: where a case lies in the common frame, and refinement of a field."""
