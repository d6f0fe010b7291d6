"""Checks Kubernetes manifests against the API's own schemas, and prints them as JSON: manifests.py FILE...

The schemas are those of Kubernetes' OpenAPI document, in the package kubernetes-validate; strict: a key that is in no schema is
a mistake. Of the newest version that it has, and of an old one that is still in use.
"""
import json
import sys

import kubernetes_validate
import yaml

OLDEST = "1.28.0"

documents = []
mistakes = []
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        for document in yaml.safe_load_all(file):
            documents.append(document)
            for version in (OLDEST, kubernetes_validate.latest_version()):
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    where = "/".join(str(part) for part in error.path)
                    name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
                    mistakes.append(f"{path}: {name}, by Kubernetes {version}: {where}: {error.message}")
if mistakes:
    sys.exit("\n".join(mistakes))
print(json.dumps(documents))
