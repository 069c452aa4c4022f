#!/bin/bash
# Train the embedded model on one GPU, in three commands of ten minutes each, and then, with what they
# have made, the CLIPs once more, on pictures of its own, and the classifiers:
#     bash scripts/embedded/train_all.sh 1 OUT; ... 2 OUT; ... 3 OUT; ... 4 OUT; ... 5 OUT
# Checkpoints stay in /tmp/ckpt between the commands; results are copied to OUT as tar files.
stage=$1 out=$2 here=$(dirname "$0") keep=/tmp/ckpt end=$(($(date +%s) + ${3:-545}))
export TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true
export PYTHONPATH=$here/../..:$PYTHONPATH
mkdir -p $keep/logs
left() { echo $((end - $(date +%s))); }
pack() { tar -C $keep -cf "$out/$1.tar.part" "${@:2}" && mv "$out/$1.tar.part" "$out/$1.tar"; }
hardening() { # of a CLIP: what its pictures are made harder by
    local hard="--adversarial 0.7 --warp 3 --restyled 0.2"
    [ $1 = A ] && hard="--adversarial 1 --warp 2.5 --restyled 0.15"
    echo --smeared 0.4 --noise 0.2 $hard
}
diffusion() { # part of the cosine, seed, further options
    for graph in --graph ""; do
        python3 $here/train_diffusion.py --out $keep --vae $keep/vae --seconds $(left) \
            --part $1 $2 --seed $3 $graph ${@:4} >$keep/logs/diffusion_$stage$graph.txt 2>&1 && break
    done
}
pack_pipeline() {
    pack unet unet
    pack pipeline vae text_encoder scheduler model_index.json
}
case $stage in
1)
    diffusion 0 0.2 2 &
    python3 $here/train_autoencoder.py --out $keep/vae --seconds 225 >$keep/logs/autoencoder.txt 2>&1 \
        || { tail -30 $keep/logs/*.txt; exit 1; }
    tail -3 $keep/logs/autoencoder.txt
    pack pipeline vae
    for x in A B C; do
        y=$(echo $x | tr ABC abc)
        # In use: A and B without hardening for 150 s, attacked for 190 s, with all for 200 s; then B
        # for 425 s at --rate 1e-3, and C from nothing for 425 s at 2e-3, both with --smeared 0.25.
        python3 $here/train_clip.py --pair $x --out $keep/clip_$y --seconds 165 \
            $(hardening $x) >$keep/logs/clip_$y.txt 2>&1 &
    done
    wait
    pack scorers clip_a clip_b clip_c
    pack_pipeline
    ;;
2)
    diffusion 0.2 ${4:-0.6} 3 --resume
    pack_pipeline
    ;;
3)
    diffusion 0.6 1 4 --resume
    pack_pipeline
    cp -r $keep/. doodl_cli/assets/emoji/
    ;;
4)
    # On the GPUs in turn. In use: of 440 s on two H200, C for two thirds, after 300 s of C alone on an
    # H200, and 2,400 steps of B on a CPU (--rate 6e-4 --batch 192, 5,000 pictures); the classifiers
    # for 370 s, each on an H200, and beside A 230 s of noise_aware. Then C from there with --several
    # 0.6, at 1e-3 and at 5e-4 for 440 s each on an H200, and the mean of both (average_clips.py).
    gpus=$(nvidia-smi -L | wc -l) seconds=$(($(left) * 4 / 5))
    for x in A B C; do
        y=$(echo $x | tr ABC abc) n=$((n + 1))
        [ -d $keep/clip_$y ] || cp -r doodl_cli/assets/emoji/clip_$y $keep/
        CUDA_VISIBLE_DEVICES=$((n % gpus)) python3 $here/train_clip.py --pair $x --resume \
            --out $keep/clip_$y --seconds $seconds --rate 1e-3 --generated 40000 \
            --several 0.2 $(hardening $x) >$keep/logs/clip_${y}_again.txt 2>&1 &
        [ $x = C ] && continue
        attack=1
        [ $x = A ] && attack=2
        CUDA_VISIBLE_DEVICES=$(((n + 1) % gpus)) python3 $here/train_classifier.py --half $x \
            --out $keep/classifier_$y --seconds $seconds --smeared 0.4 --adversarial $attack \
            --warp 3 --restyled 0.2 >$keep/logs/classifier_$y.txt 2>&1 &
    done
    wait
    pack scorers clip_a clip_b clip_c
    pack classifiers classifier_a classifier_b
    cp -r $keep/clip_? $keep/classifier_? doodl_cli/assets/emoji/
    python3 $here/fit_aesthetic.py >$keep/logs/aesthetic.txt 2>&1
    python3 $here/evaluate.py >$keep/logs/evaluate.txt 2>&1
    tail -5 $keep/logs/aesthetic.txt $keep/logs/evaluate.txt
    tar -C doodl_cli/assets/emoji -cf "$out/evaluation.tar" aesthetic evaluation.json samples.webp
    ;;
5)
    python3 $here/train_noise_aware.py --out $keep/noise_aware --seconds 180 \
        >$keep/logs/noise_aware.txt 2>&1
    cp -r $keep/noise_aware doodl_cli/assets/emoji/
    pack noise_aware noise_aware
    ;;
esac
tar -C $keep -cf "$out/logs.tar" logs
for log in $keep/logs/*.txt; do echo "== $log"; (head -5 $log; echo ...; tail -7 $log) | cut -c1-300; done
ls -la $out
