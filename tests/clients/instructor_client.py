"""instructor, in each of its modes that asks for a form, against a running server with the haiku model.

Called by run.sh with the server's address and its key; see docs/server.md.
"""

import sys
from typing import Literal

import instructor
import openai
import pydantic

BASE, KEY = sys.argv[1], sys.argv[2]


class Sail(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    days: Literal[1, 2]
    at_sea: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0), mode=mode)
    # A model that would rather write blanks is no reason for a second try.
    for seed in range(5):
        found = client.chat.completions.create(
            model="haiku",
            messages=[{"role": "user", "content": "Go", "name": "ann"}],
            response_model=Sail,
            max_retries=0,
            max_tokens=200,
            temperature=1,
            seed=seed,
        )
        assert isinstance(found, Sail), found
    print("ok", mode.name)
