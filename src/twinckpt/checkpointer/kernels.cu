// What a GPU does with the bytes of a slot: it takes their checksums, and copies them.

typedef unsigned long long u64;

// Copies many pieces of memory at once, a row of blocks each; a piece is a target, a source and a
// size in bytes.
extern "C" __global__ void copy_all(const u64 *pieces) {
    const u64 *piece = pieces + 3 * blockIdx.y;
    const u64 target = piece[0], source = piece[1], size = piece[2];
    const u64 first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    if ((target | source | size) % 4 == 0)
        for (u64 i = first; i < size / 4; i += step) ((int *)target)[i] = ((const int *)source)[i];
    else
        for (u64 i = first; i < size; i += step) ((char *)target)[i] = ((const char *)source)[i];
}

// XXH3-64 of many chunks at once, each of `num_blocks` KiB, by eight threads a chunk.
//
// The algorithm is that of xxHash (doc/xxhash_spec.md there), for inputs of more than 240 bytes and
// without a seed: eight sums take in a block of 16 stripes of 64 bytes, and are scrambled after each.

__constant__ unsigned char SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

#define PRIME32_1 0x9E3779B1ULL
#define PRIME32_2 0x85EBCA77ULL
#define PRIME32_3 0xC2B2AE3DULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX 0x165667919E3779F9ULL

#define LANES 8
#define STRIPES 16  // of one word a lane, in a block
#define ALL_LANES 0xff

__device__ u64 secret(int position) {
    u64 word = 0;
    for (int i = 7; i >= 0; --i) word = word << 8 | SECRET[position + i];
    return word;
}

__device__ u64 of_lane(u64 word, int distance) { return __shfl_xor_sync(ALL_LANES, word, distance); }

__device__ void accumulate(u64 &sum, u64 word, u64 key) {
    u64 keyed = word ^ key;
    sum += (keyed & 0xffffffff) * (keyed >> 32) + of_lane(word, 1);
}

__device__ u64 folded_product(u64 a, u64 b) { return a * b ^ __umul64hi(a, b); }

extern "C" __global__ void xxh3_64(const u64 *chunks, u64 *digests, int num_blocks) {
    const int lane = threadIdx.x;
    const u64 first[LANES] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                              PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    u64 sum = first[lane];
    u64 keys[STRIPES], next[STRIPES];
    const u64 *block = chunks + (u64)blockIdx.x * num_blocks * STRIPES * LANES + lane;
    for (int i = 0; i < STRIPES; ++i) {
        keys[i] = secret(8 * (i + lane));
        next[i] = block[LANES * i];
    }
    const u64 scramble = secret(128 + 8 * lane);
    for (int n = 1; n < num_blocks; ++n) {
        u64 words[STRIPES];
        block += STRIPES * LANES;
        for (int i = 0; i < STRIPES; ++i) {  // the next block is on its way meanwhile
            words[i] = next[i];
            next[i] = block[LANES * i];
        }
        for (int i = 0; i < STRIPES; ++i) accumulate(sum, words[i], keys[i]);
        sum = (sum ^ sum >> 47 ^ scramble) * PRIME32_1;
    }
    keys[STRIPES - 1] = secret(121 + 8 * lane);  // the last stripe has a key of its own
    for (int i = 0; i < STRIPES; ++i) accumulate(sum, next[i], keys[i]);

    u64 mixed = sum ^ secret(11 + 8 * lane);
    u64 total = folded_product(mixed, of_lane(mixed, 1));
    total += of_lane(total, 2);
    total += of_lane(total, 4);
    u64 hash = (u64)num_blocks * 1024 * PRIME64_1 + total;
    hash = (hash ^ hash >> 37) * PRIME_MX;
    if (lane == 0) digests[blockIdx.x] = hash ^ hash >> 32;
}
