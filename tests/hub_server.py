"""A Hub on 127.0.0.1 for the tests: as much of its API as the real clients ask for, with faults on demand."""

import asyncio
import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from aiohttp import web

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = (".safetensors", ".parquet", ".png", ".jpg")


@dataclass
class Repo:
    private: bool = False
    gated: str | bool = False
    commits: dict[str, dict] = field(default_factory=dict)  # sha -> title, files (path -> content), parent
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    granted: set[str] = field(default_factory=set)

    def commit(self, title: str, files: dict[str, bytes], branch: str = "main") -> str:
        parent = self.branches.get(branch, "")
        digest = hashlib.sha1(f"{parent} {title} {len(self.commits)}".encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = {"title": title, "files": files, "parent": parent}
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        revision = revision.replace("%2F", "/")
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refuse(status: int, code: str | None, message: str) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=headers)


class HubServer:
    """Use as a context manager. `tokens`: token -> (user, role), role read or write; a user owns OWNER = user.

    Faults: `fail_every` (n: every n-th write is answered 503), `cut_uploads` (so many large uploads are cut in the
    middle), `lose_commits` (so many are done, not answered), `revoke_after` (writes until no token is valid).
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens = {"hf_writer": ("org", "write"), "hf_reader": ("org", "read"), "hf_other": ("other", "write")}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.fail_every = self.cut_uploads = self.lose_commits = self.writes = 0
        self.revoke_after: int | None = None

    def environment(self, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
        """Of a client in another process."""
        found = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        found |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "TQDM_DISABLE": "1"}
        return found | ({"HF_TOKEN": token} if token else {})

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        repo = self.repo(repo_id, kind)
        return repo.commits[repo.resolve(revision)]["files"]

    def titles(self, repo_id: str, kind: str = "model") -> list[str]:
        """Of the commits of main, newest first."""
        repo = self.repo(repo_id, kind)
        sha, found = repo.branches["main"], []
        while sha:
            found.append(repo.commits[sha]["title"])
            sha = repo.commits[sha]["parent"]
        return found

    def __enter__(self):
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        def serve():
            asyncio.set_event_loop(self._loop)
            app = web.Application(client_max_size=2**30, middlewares=[self._watch])
            app.add_routes(
                [
                    web.get("/api/whoami-v2", self._whoami),
                    web.post("/api/repos/create", self._create),
                    web.post("/api/validate-yaml", self._validate),
                    web.post("/api/collections", self._collection),
                    web.post(r"/api/collections/{slug:.+}/{item:items?}", self._collection_item),
                    web.get("/api/collections/{slug:.+}", self._collection),
                    web.route("*", r"/api/{kinds:models|datasets|spaces}/{owner}/{name}{rest:(/.*)?}", self._api),
                    web.post(r"/{path:.+}.git/info/lfs/objects/batch", self._batch),
                    web.put("/lfs/{oid}", self._upload),
                    web.post("/lfs-verify", self._done),
                    web.get("/lfs/{oid}", self._blob),
                    web.route("*", r"/{path:.+?}/resolve/{revision}/{file:.+}", self._resolve),
                ]
            )
            runner = web.AppRunner(app)
            self._loop.run_until_complete(runner.setup())
            site = web.TCPSite(runner, "127.0.0.1", 0)
            self._loop.run_until_complete(site.start())
            self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            self._loop.run_forever()
            self._loop.run_until_complete(runner.cleanup())

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @web.middleware
    async def _watch(self, request, handler):
        write = request.method in ("POST", "PUT") and request.path != "/api/validate-yaml"
        self.writes += write
        if self.revoke_after is not None and self.writes > self.revoke_after:
            self.tokens = {}
        if write and self.fail_every and self.writes % self.fail_every == 0:
            await request.read()
            answer = web.Response(status=503)
        elif request.headers.get("Authorization") and self._user(request) is None and "/lfs" not in request.path[:5]:
            await request.read()
            answer = refuse(401, None, "Invalid username or password.")
        else:
            try:
                answer = await handler(request)
            except web.HTTPException as error:
                self.requests.append((request.method, request.path, error.status))
                raise
        self.requests.append((request.method, request.path, answer.status))
        return answer

    def _user(self, request) -> tuple[str, str] | None:
        return self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))

    def _seen(self, request, kind: str, repo_id: str) -> Repo | web.Response:
        repo, user = self.repos.get((kind, repo_id)), self._user(request)
        if repo is None or (repo.private and (user is None or user[0] != repo_id.split("/")[0])):
            return refuse(401 if user is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def _may_write(self, request, owner: str) -> web.Response | None:
        user = self._user(request)
        if user is None:
            return refuse(401, None, "Invalid username or password.")
        if user != (owner, "write"):
            return refuse(403, None, f"You don't have the rights to write under the namespace {owner}")
        return None

    async def _whoami(self, request):
        user = self._user(request)
        if user is None:
            return refuse(401, None, "Invalid username or password.")
        return web.json_response(
            {"name": user[0], "type": "user", "orgs": [], "auth": {"accessToken": {"role": user[1]}}}
        )

    async def _create(self, request):
        asked = await request.json()
        owner = asked.get("organization") or (self._user(request) or ("?",))[0]
        refusal = self._may_write(request, owner)
        if refusal is not None:
            return refusal
        kind, repo_id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        url = f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.repos:
            body = {"error": "You already created this repo", "url": url}
            return web.json_response(body, status=409)
        if kind == "space" and asked.get("sdk") not in ("gradio", "docker", "static"):
            return refuse(400, None, "sdk must be one of gradio, docker, static")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repos[kind, repo_id] = Repo(private=bool(private))
        self.repos[kind, repo_id].commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return web.json_response({"url": url, "name": repo_id, "id": repo_id})

    async def _validate(self, request):
        asked, errors = await request.json(), []
        header = re.match(r"---\n(.*?)\n---", asked["content"], re.DOTALL)
        try:
            data = yaml.safe_load(header.group(1)) if header else {}
        except yaml.YAMLError as error:
            data, errors = {}, [str(error)]
        if asked["repoType"] == "model":
            tasks = ("image-classification", "image-feature-extraction", None)
            if data.get("pipeline_tag") not in tasks:
                errors.append(f'"pipeline_tag" must be a known task, got {data["pipeline_tag"]!r}')
            if data.get("license") == "other" and not data.get("license_name"):
                errors.append('"license_name" is needed')
            for entry in data.get("model-index", []):
                for result in entry["results"]:
                    if not result["task"].get("type") or not {"type", "name"} <= set(result["dataset"]):
                        errors.append('"model-index" lacks a task or a data set')
        body = {"errors": [{"message": message} for message in errors], "warnings": []}
        return web.json_response(body, status=400 if errors else 200)

    async def _collection(self, request):
        if request.method == "GET":
            found = self.collections.get(request.match_info["slug"])
            return web.json_response(found) if found else refuse(404, None, "Collection not found")
        asked = await request.json()
        refusal = self._may_write(request, asked["namespace"])
        if refusal is not None:
            return refusal
        slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-0"
        if slug in self.collections:
            return web.json_response({"error": "exists", "slug": slug}, status=409)
        self.collections[slug] = {
            **{"slug": slug, "title": asked["title"], "items": [], "private": False, "position": 0, "upvotes": 0},
            **{"owner": {"name": asked["namespace"]}, "lastUpdated": "2026-01-01T00:00:00.000Z", "theme": "blue"},
        }
        return web.json_response(self.collections[slug])

    async def _collection_item(self, request):
        asked, found = await request.json(), self.collections[request.match_info["slug"]]
        if asked["item"] in [{"type": item["type"], "id": item["id"]} for item in found["items"]]:
            return refuse(409, None, "already there")
        found["items"].append({**asked["item"], "_id": str(len(found["items"])), "position": len(found["items"])})
        return web.json_response(found)

    async def _api(self, request):
        info = request.match_info
        kind, repo_id = TYPES[info["kinds"]], f"{info['owner']}/{info['name']}"
        repo = self._seen(request, kind, repo_id)
        if isinstance(repo, web.Response):
            return repo
        rest = info["rest"].strip("/").split("/", 2)
        what = rest[0]
        if request.method in ("POST", "PUT", "DELETE") and what not in ("paths-info",):
            body = await request.read()
            refusal = None if "create_pr" in request.query else self._may_write(request, info["owner"])
            if refusal is not None:
                return refusal
            revision = rest[1].replace("%2F", "/") if len(rest) > 1 else "main"
            if what == "preupload":
                files = json.loads(body)["files"]
                sha = repo.resolve(revision)
                there = repo.commits[sha]["files"]
                answers = []
                for file in files:
                    large, content = file["path"].endswith(LARGE), there.get(file["path"])
                    oid = content and (hashlib.sha256(content).hexdigest() if large else git_oid(content))
                    entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                    answers.append(entry | ({"oid": oid} if oid else {}))
                return web.json_response({"files": answers, "commitOid": sha})
            if what == "commit":
                return await self._commit(request, repo, kind, repo_id, revision, body)
            if what in ("tag", "branch"):
                asked = json.loads(body or b"{}")
                names = repo.tags if what == "tag" else repo.branches
                name = asked["tag"] if what == "tag" else revision
                if name in names:
                    return refuse(409, None, f"{what} {name} exists")
                names[name] = repo.resolve(revision if what == "tag" else asked.get("startingPoint") or "main")
                return web.json_response({})
            if what == "settings":
                for name, value in json.loads(body).items():
                    setattr(repo, name, value)
                return web.json_response({})
        if what == "refs":
            refs = {
                "branches": [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                    for name, sha in repo.branches.items()
                    if not name.startswith("refs/")
                ],
                "tags": [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repo.tags.items()
                ],
                "converts": [],
            }
            return web.json_response(refs)
        revision = rest[1] if len(rest) > 1 and what in ("revision", "tree", "paths-info") else "main"
        sha = repo.resolve(revision)
        if sha is None:
            return refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[sha]["files"]
        if what in ("tree", "paths-info"):
            if what == "tree":
                under = rest[2].rstrip("/") + "/" if len(rest) > 2 else ""
                names = {name for name in files if name.startswith(under)}
                if under and not names:
                    return refuse(404, "EntryNotFound", f"{under} does not exist")
                if request.query.get("recursive", "false").lower() != "true":
                    names = {under + name.removeprefix(under).split("/")[0] for name in names}
            else:
                names = set((await request.post()).getall("paths", []))
            rows = []
            for name in sorted(names):
                content = files.get(name)
                if content is None:
                    if any(other.startswith(f"{name}/") for other in files):
                        rows.append({"type": "directory", "path": name, "oid": sha, "size": 0})
                    continue
                row = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
                if name.endswith(LARGE):
                    row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                rows.append(row)
            return web.json_response(rows)
        if what in ("", "revision"):
            card = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
            data = yaml.safe_load(card.group(1)) if card else {}
            described = {
                **{"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "gated": repo.gated},
                **{
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": data.get("tags", []),
                    "disabled": False,
                },
                **{"cardData": data, "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"},
                **{name: data[name] for name in ("pipeline_tag", "library_name") if name in data},
            }
            return web.json_response(described)
        return refuse(404, None, f"no route {request.path}")

    async def _commit(self, request, repo, kind, repo_id, revision, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repo.commits[repo.resolve(revision)]["files"])
        title = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return refuse(400, None, f"{value['path']} was not uploaded")
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        answer = {}
        if request.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            revision = f"refs/pr/{number}"
            repo.branches[revision] = repo.branches["main"]
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo_id}/discussions/{number}"
        sha = repo.commit(title, files, revision)
        if self.lose_commits:
            self.lose_commits -= 1
            request.transport.abort()
        return web.json_response(
            {"commitOid": sha, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{sha}", "success": True} | answer
        )

    async def _batch(self, request):
        asked, objects = await request.json(), []
        for item in asked["objects"]:
            actions = {}
            if item["oid"] not in self.blobs:
                actions["upload"] = {"href": f"{self.endpoint}/lfs/{item['oid']}", "header": {}}
                actions["verify"] = {"href": f"{self.endpoint}/lfs-verify", "header": {}}
            objects.append({**item, "actions": actions} if actions else item)
        return web.json_response({"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

    async def _upload(self, request):
        if self.cut_uploads:
            self.cut_uploads -= 1
            await request.content.readany()
            request.transport.abort()
        content, oid = await request.read(), request.match_info["oid"]
        assert hashlib.sha256(content).hexdigest() == oid
        self.blobs[oid] = content
        return web.Response()

    async def _done(self, request):
        return web.json_response({})

    async def _blob(self, request):
        return self._ranged(request, self.blobs[request.match_info["oid"]], {})

    def _ranged(self, request, content: bytes, headers: dict) -> web.Response:
        asked = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return web.Response(body=content, headers=headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return web.Response(status=206, body=content[first : last + 1], headers=headers)

    async def _resolve(self, request):
        *kinds, owner, name = request.match_info["path"].split("/")
        kind, repo_id = TYPES[kinds[0]] if kinds else "model", f"{owner}/{name}"
        repo = self._seen(request, kind, repo_id)
        if isinstance(repo, web.Response):
            return repo
        sha = repo.resolve(request.match_info["revision"])
        if sha is None:
            return refuse(404, "RevisionNotFound", "Invalid rev id")
        user = self._user(request)
        if repo.gated and (user is None or user[0] not in {owner, *repo.granted}):
            return refuse(403 if user else 401, "GatedRepo", f"Access to {kind} {repo_id} is restricted")
        content = repo.commits[sha]["files"].get(request.match_info["file"])
        if content is None:
            answer = refuse(404, "EntryNotFound", "Entry not found")
            answer.headers["X-Repo-Commit"] = sha
            return answer
        large = request.match_info["file"].endswith(LARGE)
        tag = hashlib.sha256(content).hexdigest() if large else git_oid(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{tag}"'} if large else {}
        return self._ranged(request, content, headers)
