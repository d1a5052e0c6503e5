"""A Hugging Face Hub on 127.0.0.1 for the tests: what the real clients ask for, errors included, and faults on demand.

Not there: Xet, git over HTTP, merging of pull requests, search, `.gitignore` on upload, moving a repository. As on the
Hub, a model, a data set and a Space may have the same name. Large files go through a second address ("storage"), like
the Hub's CDN: it wants no token and refuses one, so that a client that leaks it there is found out.
"""

import asyncio
import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from aiohttp import web
from hub_store import LARGE_DATA_NAMES, TASK_OF_CLASS, Blob, Commit, Fault, Refusal, Repo, User, card_data, check_card

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LARGE = 10 * 2**20  # bytes; above, a file is stored as a large file whatever its name
LARGE_NAMES = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet "
    "*.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
).split()


class HubServer:
    """A Hub in a thread of this process; use as a context manager. Nobody has an account at first: `add_user`.

    What the clients did is read by `commits`, `files`, `repo` and `requests`, a list of (method, path, status); the
    status is 0 where the connection was dropped. Paths are those of the API, and for the contents of large files
    `PUT /lfs/SHA256` and `GET /lfs/SHA256`.

    Args:
        root: folder for the contents of files.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and id
        self.users: dict[str, User] = {}  # by token
        self.collections: dict[str, dict] = {}  # by slug
        self.requests: list[tuple[str, str, int]] = []
        self.page_size = 1000  # rows of a listing; the next ones are another request
        self.part_size: int | None = None  # bytes; a large file above is uploaded in parts
        self._faults: list[Fault] = []
        self._writes_left: dict[str, int] = {}

    # Accounts and what the clients did

    def add_user(self, name: str, token: str, role: str = "write", orgs: tuple[str, ...] = ()) -> None:
        """A token of a user, who owns the repositories under `name` and those of `orgs`; role "read" or "write"."""
        self.users[token] = User(name, role, tuple(orgs))

    def revoke(self, token: str) -> None:
        del self.users[token]

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """Variables of a client in another process; `home` takes the place of its cache."""
        found = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        found |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "TQDM_DISABLE": "1"}
        return found | ({"HF_TOKEN": token} if token else {})

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[Commit]:
        """Newest first."""
        repo = self.repo(repo_id, repo_type)
        return repo.line(repo.at(revision))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        return {path: self._read(blob) for path, blob in self.repo(repo_id, repo_type).at(revision).files.items()}

    def commit(self, repo_id: str, title: str, files: dict[str, bytes], repo_type: str = "model") -> Commit:
        """What somebody else adds to main."""
        repo = self.repo(repo_id, repo_type)
        there = repo.at("main").files
        new = {path: self._store(data, self._is_large(there, path, len(data), data)) for path, data in files.items()}
        return repo.add("main", title, there | new, "somebody")

    # Faults. `path` is looked for in the path of a request, `method` matches the whole method, both are patterns.

    def fail(
        self,
        method: str,
        path: str,
        times: int | None = 1,
        every: int = 1,
        status: int = 503,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer every `every`-th such request with `status` and do nothing, `times` times (`None`: always)."""
        self._faults.append(Fault("fail", method, path, times, every, status, headers or {}))

    def cut(self, path: str, after_bytes: int = 0, times: int | None = 1) -> None:
        """Drop the connection after so many bytes of the body of an upload, or of a download longer than that."""
        self._faults.append(Fault("cut", "GET|PUT|POST", path, times, after_bytes=after_bytes))

    def lose_answer(self, path: str, times: int | None = 1) -> None:
        """Do the work, then drop the connection in place of the answer."""
        self._faults.append(Fault("lose", ".*", path, times))

    def revoke_after(self, token: str, n_writes: int) -> None:
        """Revoke the token after so many more requests that write."""
        self._writes_left[token] = n_writes

    def mend(self) -> None:
        """No more faults."""
        self._faults.clear()
        self._writes_left.clear()

    # The server

    def __enter__(self) -> "HubServer":
        self.root.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.new_event_loop()
        runner = self._loop.run_until_complete(self._start())
        self.endpoint, self.storage = (f"http://127.0.0.1:{address[1]}" for address in runner.addresses)

        def serve() -> None:
            self._loop.run_forever()
            self._loop.run_until_complete(runner.cleanup())
            self._loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**30, middlewares=[self._watch])
        repo = "{types:models|datasets|spaces}/{owner}/{name}"
        handlers: dict[str, Callable] = {
            "GET /api/whoami-v2": self._whoami,
            "POST /api/validate-yaml": self._validate,
            "POST /api/repos/create": self._create,
            "DELETE /api/repos/delete": self._delete,
            "POST /api/collections": self._new_collection,
            "GET /api/collections/{owner}/{slug}": self._collection,
            "POST /api/collections/{owner}/{slug}/items": self._new_item,
            f"GET /api/{repo}": self._info,
            f"GET /api/{repo}/revision/{{revision}}": self._info,
            f"GET /api/{repo}/tree/{{revision}}": self._tree,
            f"GET /api/{repo}/tree/{{revision}}/{{path:.+}}": self._tree,
            f"POST /api/{repo}/paths-info/{{revision}}": self._paths_info,
            f"GET /api/{repo}/refs": self._refs,
            f"GET /api/{repo}/commits/{{revision}}": self._log,
            f"GET /api/{repo}/auth-check": self._auth_check,
            f"GET /api/{repo}/auth-check/write": self._auth_check,
            f"PUT /api/{repo}/settings": self._settings,
            f"POST /api/{repo}/user-access-request/grant": self._grant,
            f"GET /api/{repo}/variables": self._variables,
            f"POST /api/{repo}/variables": self._new_variable,
            f"POST /api/{repo}/preupload/{{revision}}": self._preupload,
            f"POST /api/{repo}/commit/{{revision}}": self._commit,
            f"POST /api/{repo}/branch/{{revision}}": self._new_branch,
            f"DELETE /api/{repo}/branch/{{revision}}": self._no_branch,
            f"POST /api/{repo}/tag/{{revision}}": self._new_tag,
            f"DELETE /api/{repo}/tag/{{revision}}": self._no_tag,
            "PUT /lfs/{sha}": self._upload,
            "PUT /lfs/{sha}/{part}": self._upload_part,
            "POST /lfs/{sha}/complete": self._upload_complete,
            "GET /lfs/{sha}": self._download,
        }
        for prefix in ("", "{types:datasets|spaces}/"):
            repo = f"/{prefix}{{owner}}/{{name}}"
            handlers[f"POST {repo}.git/info/lfs/objects/batch"] = self._batch
            handlers[f"POST {repo}.git/info/lfs/verify"] = self._verify
            handlers[f"GET {repo}/resolve/{{revision}}/{{path:.+}}"] = self._resolve
        for address, handler in handlers.items():
            method, path = address.split(" ", 1)
            app.router.add_route(method, path, handler)
            if method == "GET":
                app.router.add_route("HEAD", path, handler)
        runner = web.AppRunner(app)
        await runner.setup()
        for _ in range(2):  # the endpoint and the storage
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    @web.middleware
    async def _watch(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        try:
            answer = await self._answer(request, handler)
        except Refusal as refusal:
            answer = refusal.answer()
        except web.HTTPException as error:
            answer = Refusal(error.status, f"{request.method} {request.path}: {error.reason}").answer()
        dropped = request.transport is None or request.transport.is_closing()
        self.requests.append((request.method, request.path, 0 if dropped else answer.status))
        return answer

    def _fault(self, kind: str, request: web.Request, size: int | None = None) -> Fault | None:
        for fault in self._faults:
            if (
                fault.kind == kind
                and re.fullmatch(fault.method, request.method)
                and re.search(fault.path, request.path)
                and (size is None or size > fault.after_bytes)
                and fault.due()
            ):
                return fault
        return None

    async def _answer(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        fault = self._fault("fail", request)
        if fault:
            await request.read()
            return web.json_response({"error": "a fault"}, status=fault.status, headers=fault.headers)
        if request.method in ("PUT", "POST"):
            fault = self._fault("cut", request)
            if fault:
                with contextlib.suppress(asyncio.IncompleteReadError):  # a shorter body is read whole
                    await request.content.readexactly(fault.after_bytes)
                request.transport.abort()
                return web.Response()
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and request.path.startswith("/lfs/"):
            raise Refusal(400, "Only one auth mechanism allowed: a token was sent to the storage")
        if token and token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        reads = request.method in ("GET", "HEAD") or re.search("/validate-yaml$|/paths-info/", request.path)
        if not reads and token in self._writes_left:
            self._writes_left[token] -= 1
            if self._writes_left[token] < 0:
                self.revoke(token)
                del self._writes_left[token]
                raise Refusal(401, "Invalid credentials in Authorization header")
        answer = await handler(request)
        if self._fault("lose", request):
            request.transport.abort()
        elif request.method == "GET" and answer.body:
            fault = self._fault("cut", request, len(answer.body))
            if fault:
                part = web.StreamResponse(status=answer.status, headers=answer.headers)
                part.content_length = len(answer.body)
                await part.prepare(request)
                await part.write(answer.body[: fault.after_bytes])
                request.transport.close()  # sends what was written
                return part
        return answer

    # Contents

    def _store(self, data: bytes, large: bool) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        (self.root / sha256).write_bytes(data)
        return self._large(sha256) if large else Blob(sha256, len(data), False, self._oid(data))

    def _large(self, sha256: str) -> Blob:
        """A large file that was uploaded."""
        size = (self.root / sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Blob(sha256, size, True, self._oid(pointer), len(pointer))

    @staticmethod
    def _oid(data: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def _read(self, blob: Blob) -> bytes:
        return (self.root / blob.sha256).read_bytes()

    def _is_large(self, files: dict[str, Blob], path: str, size: int, sample: bytes) -> bool:
        """By size, by a look into the file, and by the repository's .gitattributes."""
        rules = self._read(files[".gitattributes"]).decode() if ".gitattributes" in files else ""
        patterns = [line.split()[0] for line in rules.splitlines() if "filter=lfs" in line]
        name = PurePosixPath(path).name
        named = any(fnmatch.fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)
        return size > 0 and (size > LARGE or b"\0" in sample or named)

    # Who may do what

    def _user(self, request: web.Request) -> User | None:
        return self.users.get(request.headers.get("Authorization", "").removeprefix("Bearer "))

    def _writer(self, request: web.Request, owner: str | None = None) -> User:
        """The user, if allowed to write under the name `owner` (`None`: anywhere)."""
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user.role != "write" or (owner is not None and owner not in (user.name, *user.orgs)):
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{owner or user.name}"')
        return user

    def _found(self, repo_type: str, repo_id: str, user: User | None) -> Repo:
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and (user is None or repo.owner not in (user.name, *user.orgs))):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _repo(self, request: web.Request, write: bool = False) -> Repo:
        info = request.match_info
        repo = self._found(info.get("types", "models")[:-1], f"{info['owner']}/{info['name']}", self._user(request))
        if write:
            self._writer(request, repo.owner)
        return repo

    def _check_gate(self, request: web.Request, repo: Repo) -> None:
        user = self._user(request)
        if repo.gated and (user is None or not {repo.owner, *repo.granted} & {user.name, *user.orgs}):
            message = f"Access to {repo.type} {repo.id} is restricted and you are not in the authorized list."
            raise Refusal(403 if user else 401, message, "GatedRepo")

    # Accounts, cards, collections

    async def _whoami(self, request: web.Request) -> web.Response:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        described = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name}
        described["orgs"] = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.orgs]
        described["auth"] = {"type": "access_token", "accessToken": {"displayName": "tests", "role": user.role}}
        return web.json_response(described)

    async def _validate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        warnings = check_card(asked["content"], asked["repoType"])
        return web.json_response({"errors": [], "warnings": [{"message": warning} for warning in warnings]})

    async def _new_collection(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self._writer(request, asked["namespace"])
        for slug, there in self.collections.items():
            if (there["owner"]["name"], there["title"]) == (asked["namespace"], asked["title"]):
                raise Refusal(409, "This collection already exists", slug=slug)
        title = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        slug = f"{asked['namespace']}/{title}-{secrets.token_hex(12)}"
        collection = {"slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": []}
        collection |= {"description": asked.get("description"), "private": asked.get("private", False), "position": 0}
        collection |= {"theme": "blue", "upvotes": 0, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        self.collections[slug] = collection
        return web.json_response(collection)

    def _found_collection(self, request: web.Request) -> dict:
        slug = f"{request.match_info['owner']}/{request.match_info['slug']}"
        if slug not in self.collections:
            raise Refusal(404, "Collection not found")
        return self.collections[slug]

    async def _collection(self, request: web.Request) -> web.Response:
        return web.json_response(self._found_collection(request))

    async def _new_item(self, request: web.Request) -> web.Response:
        asked, collection = await request.json(), self._found_collection(request)
        user, item = self._writer(request, collection["owner"]["name"]), asked["item"]
        self._found(item["type"], item["id"], user)
        if any((there["type"], there["id"]) == (item["type"], item["id"]) for there in collection["items"]):
            raise Refusal(409, "This item is already in the collection")
        item = item | {"_id": secrets.token_hex(12), "position": len(collection["items"])}
        collection["items"].append(item | ({"note": {"text": asked["note"]}} if "note" in asked else {}))
        return web.json_response(collection)

    # Repositories

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        user = self._writer(request)
        owner, repo_type = asked.get("organization") or user.name, asked.get("type") or "model"
        self._writer(request, owner)
        repo_id = f"{owner}/{asked['name']}"
        url = f"{self.endpoint}/{PREFIXES[repo_type]}{repo_id}"
        if (repo_type, repo_id) in self.repos:
            raise Refusal(409, f"You already created this {repo_type} repo: {repo_id}", url=url)
        if repo_type == "space" and asked.get("sdk") not in ("gradio", "docker", "static"):
            raise Refusal(400, f'"sdk" must be one of [gradio, docker, static], got {asked.get("sdk")!r}')
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, bool(private), sdk=asked.get("sdk"))
        names = LARGE_NAMES + (LARGE_DATA_NAMES if repo_type == "dataset" else [])
        rules = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in names)
        repo.add("main", "initial commit", {".gitattributes": self._store(rules.encode(), False)}, user.name)
        return web.json_response({"url": url, "name": repo_id, "id": repo_id})

    async def _delete(self, request: web.Request) -> web.Response:
        asked, user = await request.json(), self._writer(request)
        repo_id = f"{asked.get('organization') or user.name}/{asked['name']}"
        repo = self._found(asked.get("type") or "model", repo_id, user)
        self._writer(request, repo.owner)
        del self.repos[repo.type, repo.id]
        return web.Response()

    async def _settings(self, request: web.Request) -> web.Response:
        repo, asked = self._repo(request, write=True), await request.json()
        if "visibility" in asked or "private" in asked:
            repo.private = asked.get("private", asked.get("visibility") == "private")
        repo.gated = asked.get("gated", repo.gated)
        return web.json_response({"private": repo.private, "gated": repo.gated})

    async def _grant(self, request: web.Request) -> web.Response:
        self._repo(request, write=True).granted.add((await request.json())["user"])
        return web.json_response({})

    def _shown_variables(self, repo: Repo) -> web.Response:
        return web.json_response({name: {"key": name, "value": value} for name, value in repo.variables.items()})

    async def _variables(self, request: web.Request) -> web.Response:
        return self._shown_variables(self._repo(request, write=True))

    async def _new_variable(self, request: web.Request) -> web.Response:
        repo, asked = self._repo(request, write=True), await request.json()
        repo.variables[asked["key"]] = asked["value"]
        return self._shown_variables(repo)

    async def _auth_check(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=request.path.endswith("/write"))
        self._check_gate(request, repo)
        return web.json_response({})

    async def _info(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        commit = repo.at(request.match_info.get("revision", "main"))

        def text(path: str) -> str:
            return self._read(commit.files[path]).decode() if path in commit.files else ""

        card, config = card_data(text("README.md")), json.loads(text("config.json") or "{}")
        described = {"id": repo.id, "author": repo.owner, "sha": commit.sha, "lastModified": commit.date}
        described |= {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
        described |= {"createdAt": repo.line(commit)[-1].date, "cardData": card}
        tags = [card.get("library_name"), *(card.get("tags") or [])]
        if repo.type == "model":
            inferred = (TASK_OF_CLASS.get(name) for name in config.get("architectures") or [])
            task = card.get("pipeline_tag") or next(inferred, None)
            tags += [task, config.get("model_type"), "custom_code" if "auto_map" in config else None]
            tags += ["safetensors" if any(path.endswith(".safetensors") for path in commit.files) else None]
            named = {name: config[name] for name in ("architectures", "model_type", "auto_map") if name in config}
            described |= {"modelId": repo.id, "config": named, "model-index": card.get("model-index")}
            described |= {"pipeline_tag": task} if task else {}
            described |= {"library_name": card["library_name"]} if "library_name" in card else {}
        elif repo.type == "space":
            described["sdk"] = card.get("sdk", repo.sdk)
        tags += [f"license:{card['license']}" if "license" in card else None, "region:us"]
        described["tags"] = [tag for tag in dict.fromkeys(tags) if tag]
        described["siblings"] = [{"rfilename": path} for path in sorted(commit.files)]
        if request.query.get("blobs"):
            for sibling in described["siblings"]:
                blob = commit.files[sibling["rfilename"]]
                large = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
                sibling |= {"size": blob.size, "blobId": blob.oid} | ({"lfs": large} if blob.large else {})
        return web.json_response(described)

    def _row(self, repo: Repo, commit: Commit, path: str, expand: bool) -> dict | None:
        """A file or a folder, as listings show it; `None` where there is neither."""

        def under(other: Commit) -> dict[str, str]:
            return {name: blob.oid for name, blob in other.files.items() if f"{name}/".startswith(f"{path}/")}

        inside = under(commit)
        if not inside:
            return None
        if path in commit.files:
            blob = commit.files[path]
            row = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.large:
                row["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
        else:
            row = {"type": "directory", "path": path, "size": 0, "oid": self._oid(json.dumps(inside).encode())}
        if expand:
            last, *before = repo.line(commit)
            for older in before:
                if under(older) != inside:
                    break
                last = older
            row["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return row

    def _page(self, request: web.Request, rows: list[dict]) -> web.Response:
        start = int(request.query.get("cursor", 0))
        stop = start + self.page_size
        headers = {"Link": f'<{request.url.update_query(cursor=stop)}>; rel="next"'} if stop < len(rows) else {}
        return web.json_response(rows[start:stop], headers=headers)

    async def _tree(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        commit, top = repo.at(request.match_info["revision"]), request.match_info.get("path", "").strip("/")
        recursive, expand = (request.query.get(name, "").lower() == "true" for name in ("recursive", "expand"))
        files = [name for name in commit.files if not top or name.startswith(f"{top}/")]
        if top and not files:
            raise Refusal(404, f"{top} does not exist on {commit.sha}", "EntryNotFound")
        depth = len(PurePosixPath(top).parts)
        places = {place for name in files for place in (PurePosixPath(name), *PurePosixPath(name).parents)}
        names = [
            str(place)
            for place in places
            if len(place.parts) == depth + 1 or (recursive and len(place.parts) > depth + 1)
        ]
        return self._page(request, [self._row(repo, commit, name, expand) for name in sorted(names)])

    async def _paths_info(self, request: web.Request) -> web.Response:
        repo, asked = self._repo(request), await request.post()
        commit, expand = repo.at(request.match_info["revision"]), asked.get("expand", "").lower() == "true"
        rows = (self._row(repo, commit, path.strip("/"), expand) for path in asked.getall("paths", []))
        return web.json_response([row for row in rows if row])

    async def _refs(self, request: web.Request) -> web.Response:
        repo = self._repo(request)

        def rows(kind: str, refs: dict[str, str], pull: bool = False) -> list[dict]:
            chosen = {name: sha for name, sha in refs.items() if name.startswith("refs/pr/") == pull}
            return [{"name": name, "ref": f"{kind}{name}", "targetCommit": sha} for name, sha in chosen.items()]

        refs = {"branches": rows("refs/heads/", repo.branches), "tags": rows("refs/tags/", repo.tags), "converts": []}
        if request.query.get("include_prs"):
            refs["pullRequests"] = rows("", repo.branches, pull=True)
        return web.json_response(refs)

    async def _log(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        rows = [
            {"id": commit.sha, "title": commit.title, "message": commit.description, "date": commit.date}
            | {"authors": [{"user": commit.author}]}
            for commit in repo.line(repo.at(request.match_info["revision"]))
        ]
        return self._page(request, rows)

    async def _new_branch(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request, write=True), request.match_info["revision"]
        asked = await request.json()
        if name.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {name}")
        if name in repo.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = repo.at(asked.get("startingPoint") or "main").sha
        return web.json_response({})

    async def _no_branch(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request, write=True), request.match_info["revision"]
        if name == "main":
            raise Refusal(403, "The branch main cannot be deleted")
        if repo.branches.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return web.json_response({})

    async def _new_tag(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request, write=True), (await request.json())["tag"]
        commit = repo.at(request.match_info["revision"])
        if name in repo.tags:
            raise Refusal(409, f"Tag reference exists already: refs/tags/{name}")
        repo.tags[name] = commit.sha
        return web.json_response({})

    async def _no_tag(self, request: web.Request) -> web.Response:
        name = request.match_info["revision"]
        if self._repo(request, write=True).tags.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return web.json_response({})

    # Uploads

    def _proposed(self, request: web.Request) -> Repo:
        """Who may see a repository may propose a pull request; other commits are the owner's."""
        self._writer(request)
        return self._repo(request, write="create_pr" not in request.query)

    async def _preupload(self, request: web.Request) -> web.Response:
        repo = self._proposed(request)
        commit, rows = repo.at(request.match_info["revision"]), []
        for file in (await request.json())["files"]:
            path, there = file["path"], commit.files.get(file["path"])
            large = self._is_large(commit.files, path, file["size"], base64.b64decode(file["sample"]))
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            rows.append(row | ({"oid": there.sha256 if there.large else there.oid} if there else {}))
        return web.json_response({"files": rows, "commitOid": commit.sha})

    async def _batch(self, request: web.Request) -> web.Response:
        self._writer(request)
        repo, objects = self._repo(request), []  # a pull request uploads here as well
        for item in (await request.json())["objects"]:
            sha, size = item["oid"], item["size"]
            row = {"oid": sha, "size": size}
            if not (self.root / sha).exists():
                url = f"{self.storage}/lfs/{sha}"
                upload = {"href": url, "header": {}}
                if self.part_size and size > self.part_size:
                    parts = {str(number + 1): f"{url}/{number + 1}" for number in range(-(-size // self.part_size))}
                    upload = {"href": f"{url}/complete", "header": parts | {"chunk_size": str(self.part_size)}}
                verify = {"href": f"{self.endpoint}/{PREFIXES[repo.type]}{repo.id}.git/info/lfs/verify", "header": {}}
                row["actions"] = {"upload": upload, "verify": verify}
            objects.append(row)
        return web.json_response({"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

    def _receive(self, sha: str, data: bytes) -> web.Response:
        if hashlib.sha256(data).hexdigest() != sha:
            raise Refusal(400, f"the content does not have the sha256 {sha}")
        (self.root / sha).write_bytes(data)
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        return self._receive(request.match_info["sha"], await request.read())

    async def _upload_part(self, request: web.Request) -> web.Response:
        data = await request.read()
        (self.root / f"{request.match_info['sha']}.{request.match_info['part']}").write_bytes(data)
        return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def _upload_complete(self, request: web.Request) -> web.Response:
        sha, asked = request.match_info["sha"], await request.json()
        parts = [(self.root / f"{sha}.{part['partNumber']}").read_bytes() for part in asked["parts"]]
        return self._receive(sha, b"".join(parts))

    async def _verify(self, request: web.Request) -> web.Response:
        self._writer(request)
        asked = await request.json()
        if not (self.root / asked["oid"]).exists() or self._large(asked["oid"]).size != asked["size"]:
            raise Refusal(404, f"{asked['oid']} with {asked['size']} bytes was not uploaded")
        return web.json_response({})

    async def _commit(self, request: web.Request) -> web.Response:
        repo, user, branch = self._proposed(request), self._user(request), request.match_info["revision"]
        header, *lines = (json.loads(line) for line in (await request.read()).splitlines())
        header, head, pull = header["value"], repo.at(branch), "create_pr" in request.query
        files = dict(head.files)
        if not pull and branch not in repo.branches:
            raise Refusal(400, f"{branch} is not a branch")
        if header.get("parentCommit", head.sha) != head.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                if path == "README.md":
                    check_card(data.decode(), repo.type)
                files[path] = self._store(data, False)
            elif line["key"] == "lfsFile":
                if not (self.root / value["oid"]).exists():
                    raise Refusal(400, f"the content of {path} was not uploaded")
                files[path] = self._large(value["oid"])
            elif line["key"] in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if f"{name}/".startswith(f"{path.rstrip('/')}/")]
                if not gone:
                    raise Refusal(404, f"A file with the name {path} does not exist", "EntryNotFound", sha=head.sha)
                for name in gone:
                    del files[name]
            else:
                raise Refusal(400, f"{line['key']} is not an operation of this Hub")
        address, answer = f"{self.endpoint}/{PREFIXES[repo.type]}{repo.id}", {}
        if pull:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            branch = f"refs/pr/{number}"
            repo.branches[branch] = head.sha
            answer["pullRequestUrl"] = f"{address}/discussions/{number}"
        # A commit without a change is a commit: it is the client that leaves out what is already there.
        commit = repo.add(branch, header["summary"], files, user.name, header.get("description", ""))
        answer |= {"success": True, "commitOid": commit.sha, "commitUrl": f"{address}/commit/{commit.sha}"}
        return web.json_response(answer)

    # Downloads

    def _ranged(self, request: web.Request, data: bytes, headers: dict[str, str]) -> web.Response:
        asked, size = request.http_range, len(data)
        headers = headers | {"Accept-Ranges": "bytes"}
        if asked.start is None:
            return web.Response(body=data, headers=headers)
        first, stop, _ = asked.indices(size)
        if first >= stop:
            return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        headers |= {"Content-Range": f"bytes {first}-{stop - 1}/{size}"}
        return web.Response(status=206, body=data[first:stop], headers=headers)

    async def _download(self, request: web.Request) -> web.Response:
        path = self.root / request.match_info["sha"]
        if not path.exists():
            raise Refusal(404, "NoSuchKey")
        return self._ranged(request, path.read_bytes(), {"ETag": f'"{path.name}"'})

    async def _resolve(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        commit, path = repo.at(request.match_info["revision"]), request.match_info["path"]
        self._check_gate(request, repo)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", sha=commit.sha)
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'}
        if not blob.large:
            return self._ranged(request, self._read(blob), headers)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        return web.Response(status=302, headers=headers | {"Location": f"{self.storage}/lfs/{blob.sha256}"})
