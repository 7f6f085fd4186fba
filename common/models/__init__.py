"""Models without state outside their parameters, so that they can be differentiated through and averaged."""

from nufed.common.models.checks import check_model, check_same_outputs
from nufed.common.models.examination import examine
from nufed.common.models.registry import DTYPES, MODELS, ModelSpec, build_model

__all__ = ["DTYPES", "MODELS", "ModelSpec", "build_model", "check_model", "check_same_outputs", "examine"]
