"""Tiny sibling models and questions to try everything on, without a GPU and without a hub.

Models, accepted as ``lab:<name>`` wherever a model is named, each a Qwen2 of 0.18 M parameters:

| name         | trained from | on                                                                             |
|--------------|--------------|--------------------------------------------------------------------------------|
| `base`       | nothing      | the text of all abilities, questions and answers                               |
| `generalist` | `base`       | answers of all abilities                                                       |
| `specialist` | `generalist` | answers of arithmetic only: better at sums, and the number words are forgotten |

Questions, accepted as ``lab:<name>`` wherever a data file is named, with splits ``train``, ``validation`` and ``test``:

| name                              | a row                                                          | rows            |
|-----------------------------------|----------------------------------------------------------------|-----------------|
| `arithmetic`                      | "12 + 35 =" → "47", sums to 99                                 | 3941, 60, 400   |
| `words-en` (`-de`, `-fr`, `-es`)  | "Write 347 in German." → "dreihundertsiebenundvierzig", to 999 | 639, 60, 300    |
| `words`                           | those of the four languages, mixed                             | 2556, 240, 1200 |
"""

from act_lightning.laboratory.abilities import ABILITIES, SPLITS, rows
from act_lightning.laboratory.cache import MODELS, model_folder
from act_lightning.laboratory.recipe import Recipe, Stage

__all__ = ["ABILITIES", "MODELS", "SPLITS", "Recipe", "Stage", "model_folder", "rows"]
