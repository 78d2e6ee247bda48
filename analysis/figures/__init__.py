"""The report's figures, by what they show; each as SVG and PNG with a caption and a text for who cannot see it."""

from analysis.figures.alpha import AlphaScale, alpha_curve, margin_curves
from analysis.figures.by_set import rouge_by_set
from analysis.figures.cost import cost_curve
from analysis.figures.learning import learning_curves
from analysis.figures.ratios import gain_against_ratio, mis_instruction, teacher_ratios
from analysis.figures.search import contours, importance, screening_curves, search_history
from analysis.figures.style import Drawing

__all__ = [
    "AlphaScale",
    "Drawing",
    "alpha_curve",
    "contours",
    "cost_curve",
    "gain_against_ratio",
    "importance",
    "learning_curves",
    "margin_curves",
    "mis_instruction",
    "rouge_by_set",
    "screening_curves",
    "search_history",
    "teacher_ratios",
]
