"""How far a probe may be believed: scores, nulls, baselines, calibration, reliability."""
