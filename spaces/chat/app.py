"""A Space: a chat whose answers say what they rest on. The variables of the Space say with which model."""

import os

from gradellm_hf import GradELLM
from gradellm_hf.app import launch

MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
DOCUMENTS = {
    "opening hours": "The museum opens at nine on weekdays. On Sundays it stays closed.",
    "tickets": "A ticket costs twelve euros. Children under ten pay nothing.",
    "cafe": "The cafe on the second floor serves soup and fresh bread.",
}

if __name__ == "__main__":
    launch(
        GradELLM.from_pretrained(MODEL),
        host="0.0.0.0",
        port=int(os.environ.get("PORT", "7860")),
        documents=DOCUMENTS,
        system=os.environ.get("SYSTEM", "Answer in one short sentence."),
        most_new_tokens=int(os.environ.get("MOST_NEW_TOKENS", "256")),
    )
