// What the bytes of a document are in the language that it is written in, by rules that can be read here and
// in language.cpp: source code by one small lexer, markup by its brackets, English by lists of words. Which
// kind of text a document is, and in which tongue, is told by marks and by frequent words; both are rules,
// too, and a document that is known to be something else can be read as that (ConceptInput::sources in
// concepts.h).
//
// A lexer reads a whole document, so that a comment or a string is known from its first byte to its last,
// opener and closer included.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

enum class TextKind { PROSE, C, PYTHON, SHELL, LATEX, HTML, MARKDOWN, count };
inline constexpr std::string_view kind_names[] = {"prose", "c",    "python",  "shell",
                                                  "latex", "html", "markdown"};

// PROSE where nothing else has marks enough: two for every thousand bytes, and two at least.
TextKind kind_of_text(const std::string& document);

// One of eight languages by its most frequent words, -1: too few of any, or two that are near.
inline constexpr const char* tongue_names[] = {"English", "German",     "French", "Spanish",
                                               "Italian", "Portuguese", "Dutch",  "Polish"};
int tongue_of_text(const std::string& document);

// Bits of a byte, with their names.
enum class Code {
    COMMENT, // with what opens and closes it
    STRING,  // also a character, a here-document
    NUMBER,
    BRANCH, // keywords by what they do
    LOOP,
    LEAVE,
    EXCEPTION,
    DEFINE,
    TYPE,
    LITERAL,
    LOGIC,
    DEFINED,  // a name where it is declared or defined
    CALLED,   // a name before a round bracket
    CONSTANT, // a name of capitals
    ASSIGN,
    OPERATOR,
    IMPORT, // the whole line
    DECORATOR,
    count
};
inline constexpr const char* code_names[] = {"in a comment",
                                             "in a string",
                                             "in a number of code",
                                             "a keyword that branches",
                                             "a keyword of loops",
                                             "a keyword that leaves",
                                             "a keyword of exceptions",
                                             "a keyword that defines",
                                             "a type or its qualifier",
                                             "true, false, nothing",
                                             "and, or, not, in, is",
                                             "a name that is declared",
                                             "a name that is called",
                                             "a name of capitals",
                                             "assigns",
                                             "an operator",
                                             "in a line that imports",
                                             "a decorator"};
enum class Markup {
    INLINE_MATH, // with its dollars
    DISPLAY_MATH,
    SUBSCRIPT,
    SUPERSCRIPT,
    NUMERATOR,
    DENOMINATOR,
    COMMAND, // of LaTeX, or a tag
    ENVIRONMENT,
    HEADING,
    LINK,
    LIST,
    VERBATIM,
    COMMENT,
    ATTRIBUTE,
    ENTITY,
    count
};
inline constexpr const char* markup_names[] = {"in a formula within a line",
                                               "in a formula on lines of its own",
                                               "a subscript",
                                               "a superscript",
                                               "a numerator",
                                               "a denominator",
                                               "a command or tag",
                                               "an environment's name",
                                               "in a heading",
                                               "in a link",
                                               "the mark of a list's item",
                                               "in text shown as it is",
                                               "in a comment of markup",
                                               "an attribute's value",
                                               "an entity"};
// Words that belong to one closed class whatever stands around them; those of more than one class are in
// none.
enum class Speech {
    DETERMINER,
    PRONOUN,
    PREPOSITION,
    CONJUNCTION,
    AUXILIARY,
    NUMERAL,
    NEGATION,
    MARK,
    count
};
inline constexpr const char* speech_names[] = {
    "a determiner", "a pronoun", "a preposition",         "a conjunction",
    "an auxiliary", "a numeral", "not or its short form", "a mark of punctuation"};
enum class Script { LATIN, GREEK, CYRILLIC, HEBREW, ARABIC, INDIC, HAN, KANA, HANGUL, count };
inline constexpr const char* script_names[] = {"a Latin letter beyond ASCII",
                                               "a Greek letter",
                                               "a Cyrillic letter",
                                               "a Hebrew letter",
                                               "an Arabic letter",
                                               "a letter of an Indic script",
                                               "a Han character",
                                               "kana",
                                               "Hangul"};

// The bits of every byte of a document; all 0 where it is of another kind.
std::vector<uint32_t> code_bits(const std::string& document, TextKind kind);
std::vector<uint32_t> markup_bits(const std::string& document, TextKind kind);
std::vector<uint32_t> speech_bits(const std::string& document); // English prose
std::vector<uint32_t> script_bits(const std::string& document);
