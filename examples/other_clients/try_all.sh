#!/usr/bin/env bash
# Other people's clients against a running service, each in an environment of its own:
#   m3-serve up --in-process &
#   examples/other_clients/try_all.sh http://127.0.0.1:8000 [litellm langchain guidellm lmms-eval]
# An environment is made once, below .m3/clients; lmms-eval brings its own torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=examples/other_clients envs=.m3/clients
url=${1:-http://127.0.0.1:8000}
shift || true
: "${M3_API_KEY:=none}"
export M3_API_KEY M3_BASE_URL=$url/v1

environment() { # name, packages
    [ -x "$envs/$1/bin/python" ] || python3 -m venv "$envs/$1"
    "$envs/$1/bin/python" -m pip install --quiet "${@:2}"
}

litellm() { # its proxy in front of the service, asked by curl
    environment litellm "litellm[proxy]"
    export LITELLM_MASTER_KEY=sk-$(od -An -tx1 -N24 /dev/urandom | tr -d ' \n')
    "$envs/litellm/bin/litellm" --config $here/litellm.yaml --host 127.0.0.1 --port 4000 >"$envs/litellm.log" 2>&1 &
    trap 'kill %1 2>/dev/null' EXIT
    for _ in $(seq 60); do
        curl -sf -o "$envs/alive" http://127.0.0.1:4000/health/liveliness && break
        sleep 1
    done
    for model in m3-auto m3-144; do
        printf '{"model": "%s", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}, {"type": "text", "text": "what colour is the biggest shape?"}]}]}' \
            "$model" "$(base64 -w0 serve/pictures/scene-00.png)" |
            curl -sf http://127.0.0.1:4000/v1/chat/completions -H "authorization: Bearer $LITELLM_MASTER_KEY" \
                -H 'content-type: application/json' --data-binary @-
        echo
    done
    kill %1
    trap - EXIT
}

langchain() {
    environment langchain langchain-openai
    "$envs/langchain/bin/python" $here/langchain_chat.py "$url"
}

guidellm() { # load: four at a time, until the questions are used up
    environment guidellm "guidellm[vision]"
    "$envs/guidellm/bin/python" $here/guidellm_data.py >"$envs/questions.jsonl"
    "$envs/guidellm/bin/guidellm" run \
        --backend "kind=openai_http,target=$url,model=m3-auto,max_tokens=16,api_key=$M3_API_KEY" \
        --tokenizer kind=huggingface_auto,model=m3model/pretrained/m3-mini \
        --data "kind=json_file,path=$envs/questions.jsonl" --data-preprocessor kind=encode_media \
        --profile kind=concurrent,streams=4 --constraint kind=max_requests,count=40 \
        --disable-progress --output kind=console
}

lmms-eval() { # a task of its own, since the hub's need the hub; m3-auto, and a scale by its id
    environment lmms-eval lmms-eval
    for model in m3-auto m3-9; do
        OPENAI_API_KEY=$M3_API_KEY "$envs/lmms-eval/bin/python" -m lmms_eval --model openai \
            --model_args "model_version=$model,base_url=$url/v1" --tasks m3_scenes \
            --include_path $here/lmms_eval --batch_size 1 --log_samples --output_path "$envs/lmms-eval-out"
    done
}

for each in "${@:-litellm langchain guidellm lmms-eval}"; do
    for client in $each; do
        echo "== $client"
        "$client"
    done
done
