"""The measures: accuracy at a cost, harm, regret, calibration, with intervals by picture."""
