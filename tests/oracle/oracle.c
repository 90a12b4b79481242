/*
 * What rpcgen makes of xdr/bistream.x, to compare our bytes with.  One request a line:
 *
 *     constants              NAME VALUE, one a line, then "."
 *     encode TYPE FIELD...   the encoding in hex
 *     decode TYPE HEX        FIELD..., then "| " and the encoding of what was decoded
 *
 * and "!" with a reason for what cannot be done.  Integers are decimal, bytes are hex behind an "x", a list is its
 * length and its elements, what is optional is "-" or "+" and the value.
 */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bistream.h"

#define ENCODING_MAX (64 * 1024)

/* ---- fields: parsed from the request, or printed; one function for both keeps them alike ---- */

static bool parsing;
static char *cursor;
static FILE *printed;

static void die(const char *why, const char *what)
{
    fprintf(stderr, "oracle: %s: %s\n", why, what);
    exit(1);
}

static char *token(void)
{
    char *found = strtok_r(NULL, " \n", &cursor);
    if (!found)
        die("a field is missing", "");
    return found;
}

static void *room_for(size_t size)
{
    void *room = calloc(1, size ? size : 1);
    if (!room)
        die("no memory", "");
    return room;
}

static char *from_hex(const char *hex, u_int *length)
{
    *length = strlen(hex) / 2;
    char *bytes = room_for(*length + 1);
    for (u_int i = 0; i < *length; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            die("not hex", hex);
        bytes[i] = (char)byte;
    }
    return bytes;
}

static void print_hex(FILE *out, const char *bytes, u_int length)
{
    for (u_int i = 0; i < length; i++)
        fprintf(out, "%02x", (unsigned char)bytes[i]);
}

static void f_u32(u_int *value)
{
    if (parsing)
        *value = strtoul(token(), NULL, 10);
    else
        fprintf(printed, "%u ", *value);
}

static void f_i32(int *value)
{
    if (parsing)
        *value = strtol(token(), NULL, 10);
    else
        fprintf(printed, "%d ", *value);
}

static void f_u64(u_quad_t *value)
{
    if (parsing)
        *value = strtoull(token(), NULL, 10);
    else
        fprintf(printed, "%llu ", (unsigned long long)*value);
}

static void f_bytes(char **bytes, u_int *length)
{
    if (parsing) {
        *bytes = from_hex(token() + 1, length);
    } else {
        fputc('x', printed);
        print_hex(printed, *bytes, *length);
        fputc(' ', printed);
    }
}

static void f_string(char **string)
{
    u_int length = parsing ? 0 : strlen(*string);
    f_bytes(string, &length);
}

static void f_uuid(char uuid[16])
{
    if (!parsing) {
        u_int length = 16;
        f_bytes(&uuid, &length);
        return;
    }
    u_int length;
    char *bytes;
    f_bytes(&bytes, &length);
    if (length != 16)
        die("a UUID has 16 bytes", "");
    memcpy(uuid, bytes, 16);
    free(bytes);
}

/* Whether the value is there; makes room for it where it is parsed. */
static bool f_optional(void **value, size_t size)
{
    if (parsing)
        *value = *token() == '+' ? room_for(size) : NULL;
    else
        fputs(*value ? "+ " : "- ", printed);
    return *value != NULL;
}

static void f_extensions(bs_extensions *list)
{
    f_u32(&list->bs_extensions_len);
    if (parsing)
        list->bs_extensions_val = room_for(list->bs_extensions_len * sizeof(bs_extension));
    for (u_int i = 0; i < list->bs_extensions_len; i++) {
        bs_extension *one = &list->bs_extensions_val[i];
        f_u32(&one->type);
        f_i32(&one->needed);
        f_bytes(&one->value.value_val, &one->value.value_len);
    }
}

static void f_limits(bs_limits *limits)
{
    f_u32(&limits->max_data);
    f_u32(&limits->max_streams);
}

/* ---- the types, their fields in the order of the .x ---- */

static void f_header(bs_header *header)
{
    f_u32(&header->prog);
    f_u32(&header->vers);
    f_u32(&header->proc);
    f_u32((u_int *)&header->type);
    f_u32(&header->serial);
    f_u32((u_int *)&header->status);
}

static void f_hello(bs_hello *hello)
{
    f_u32(&hello->min_version);
    f_u32(&hello->max_version);
    f_u64(&hello->offered);
    f_u64(&hello->needed);
    f_limits(&hello->limits);
    f_extensions(&hello->extensions);
}

static void f_hello_reply(bs_hello_reply *reply)
{
    f_u32(&reply->chosen);
    f_u64(&reply->features);
    f_limits(&reply->limits);
    f_extensions(&reply->extensions);
}

static void f_open(bs_open *open)
{
    f_string(&open->target);
    f_u32(&open->kind);
    f_u32(&open->priority);
    f_u64(&open->window);
    f_extensions(&open->extensions);
}

static void f_open_reply(bs_open_reply *reply)
{
    f_u64(&reply->window);
    f_extensions(&reply->extensions);
}

static void f_finish(bs_finish *finish)
{
    f_u64(&finish->offset);
}

static void f_hole(bs_hole *hole)
{
    f_u64(&hole->length);
    f_u32(&hole->flags);
}

static void f_credit(bs_credit *credit)
{
    f_u32(&credit->stream);
    f_u64(&credit->consumed);
    f_u64(&credit->limit);
}

static void f_stop(bs_stop *stop)
{
    f_u32(&stop->stream);
}

static void f_ping(bs_ping *ping)
{
    f_u64(&ping->token);
}

static void f_close(bs_close *close)
{
    f_u32(&close->code);
    f_u32(&close->rule);
    f_string(&close->text);
}

static void f_text(bs_error_text **text)
{
    if (f_optional((void **)text, sizeof(**text)))
        f_string(*text);
}

static void f_error(bs_error *error)
{
    f_i32(&error->code);
    f_i32(&error->domain);
    f_text(&error->message);
    f_i32(&error->level);
    if (f_optional((void **)&error->dom, sizeof(*error->dom))) {
        f_string(&error->dom->name);
        f_uuid(error->dom->uuid);
        f_i32(&error->dom->id);
    }
    f_text(&error->str1);
    f_text(&error->str2);
    f_text(&error->str3);
    f_i32(&error->int1);
    f_i32(&error->int2);
    if (f_optional((void **)&error->net, sizeof(*error->net))) {
        f_string(&error->net->name);
        f_uuid(error->net->uuid);
    }
}

/* ---- requests ---- */

static union {
    bs_header header;
    bs_hello hello;
    bs_hello_reply hello_reply;
    bs_open open;
    bs_open_reply open_reply;
    bs_finish finish;
    bs_hole hole;
    bs_credit credit;
    bs_stop stop;
    bs_ping ping;
    bs_close close;
    bs_error error;
} body;

static const struct type {
    const char *name;
    xdrproc_t xdr;
    void (*fields)(void *);
} types[] = {
#define TYPE(name) { #name, (xdrproc_t)xdr_bs_##name, (void (*)(void *))f_##name }
    TYPE(header), TYPE(hello), TYPE(hello_reply), TYPE(open), TYPE(open_reply), TYPE(finish), TYPE(hole),
    TYPE(credit), TYPE(stop), TYPE(ping), TYPE(close), TYPE(error),
};

static const struct type *type_named(const char *name)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (!strcmp(types[i].name, name))
            return &types[i];
    die("no such type", name);
    return NULL;
}

static void print_encoding(const struct type *type)
{
    static char bytes[ENCODING_MAX];
    XDR xdr;
    xdrmem_create(&xdr, bytes, sizeof(bytes), XDR_ENCODE);
    if (type->xdr(&xdr, &body))
        print_hex(stdout, bytes, xdr_getpos(&xdr));
    else
        fputs("! does not encode", stdout);
}

static void encode(const struct type *type)
{
    parsing = true;
    type->fields(&body);
    print_encoding(type);
}

static void decode(const struct type *type)
{
    u_int length;
    char *bytes = from_hex(token(), &length);
    XDR xdr;
    xdrmem_create(&xdr, bytes, length, XDR_DECODE);
    if (!type->xdr(&xdr, &body)) {
        fputs("! does not decode", stdout);
    } else if (xdr_getpos(&xdr) != length) {
        fputs("! bytes follow", stdout);
    } else {
        parsing = false;
        printed = stdout;
        type->fields(&body);
        fputs("| ", stdout);
        print_encoding(type);
    }
    free(bytes);
}

static void constants(void)
{
#define CONSTANT(name) printf("%s %llu\n", #name, (unsigned long long)(name));
#include "constants.inc"
    fputs(".", stdout);
}

int main(void)
{
    static char line[4 * ENCODING_MAX];
    while (fgets(line, sizeof(line), stdin)) {
        char *request = strtok_r(line, " \n", &cursor);
        if (!request)
            die("an empty request", "");
        if (!strcmp(request, "constants")) {
            constants();
        } else {
            const struct type *type = type_named(token());
            memset(&body, 0, sizeof(body));
            if (!strcmp(request, "encode"))
                encode(type);
            else if (!strcmp(request, "decode"))
                decode(type);
            else
                die("no such request", request);
            xdr_free(type->xdr, &body);
        }
        fputc('\n', stdout);
        fflush(stdout);
    }
    return 0;
}
