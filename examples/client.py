"""Ask a server that `m2bert serve STORE` has started: `python examples/client.py "what to look for" [ADDRESS]`.

Embeddings through OpenAI's client (`pip install openai`), and a search through the address the page uses too.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from urllib.parse import urlencode

from openai import OpenAI


def main(query: str, address: str = "http://127.0.0.1:8000") -> None:
    """Print how alike two texts are to a query, then the best documents of the store and where they answer."""
    token = os.environ.get("M2BERT_TOKEN", "")
    with OpenAI(base_url=f"{address}/v1", api_key=token or "none") as client:
        model = client.models.list().data[0].id
        texts = ["Camels store fat in their humps.", "The octopus has three hearts."]
        asked = client.embeddings.create(model=model, input=query, extra_body={"input_type": "query"}).data[0]
        for text, found in zip(texts, client.embeddings.create(model=model, input=texts).data, strict=True):
            cosine = sum(a * b for a, b in zip(asked.embedding, found.embedding, strict=True))
            print(f"{cosine:6.3f}  {text}")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/search?{urlencode({'query': query, 'k': 5})}", headers=headers)
    with urllib.request.urlopen(request) as answer:
        for result in json.load(answer)["results"]:
            parts = " + ".join(f"{name} {value:.2f}" for name, value in result["parts"].items())
            print(f"{result['score']:6.3f}  {result['id']}  = {parts}")
            for passage in result["passages"][:1]:
                print(f"        {' '.join(passage['text'].split())[:90]}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit('usage: python examples/client.py "what to look for" [ADDRESS]')
    main(*sys.argv[1:])
