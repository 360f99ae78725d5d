-- Link `names in backticks` to their documentation on every page, with nbdev's own symbol index, and paths of records to the records.
-- Known are `module.name`, `Class.member`, `mudenet.module` and, where no other page can be meant, `name` alone; arguments are let be.
-- A plain lower-case word is a name only with parentheses: `train` may be a folder, a split or a register value.
-- Quarto renders no README.md: beside each stands an index.qmd that includes it, and links lead there.
-- An entry of the register begins with what its front matter says.
-- An equation has its number at the right, which MathML leaves out; it and a table scroll where they are wider than the page.
local root = quarto and quarto.project.directory or "."
local names, homes, modules = {}, {}, {} -- dotted name → address; bare name → { module → address }; module → notebook

local function add(name, link)
  names[name] = names[name] or link
end

local function load()
  for _, f in ipairs(pandoc.system.list_directory(root .. "/nbs")) do
    if f:match("%.ipynb$") then
      local module = f:lower():gsub("%.ipynb$", ""):gsub("^%d+%w*_", "")
      modules[module] = f
      add("mudenet." .. module, "/nbs/" .. f)
    end
  end
  -- configuration fields come first: `data.image_size` is one, although a module and a function are called so too
  local group
  for line in io.lines(root .. "/mudenet/config.py") do
    if line:match("^class ") then group = line:match("^class (%w+)Config") end
    local field = line:match("^    ([%w_]+): [^=]+ = ")
    if group and field then
      for _, name in ipairs(group == "Stage" and { "distill", "train" } or { group:lower() }) do
        add(name .. "." .. field, "/nbs/" .. modules.config .. "#" .. group:lower() .. "config")
      end
    end
  end
  local file = io.open(root .. "/mudenet/_modidx.py")
  if not file then return end
  for sym, page, anchor in file:read("a"):gmatch("'([%w_%.]+)':%s*%(%s*'([%w_]+)%.html#([^']+)'") do
    local module, name = sym:match("^mudenet%.([%w_]+)%.(.+)$")
    if modules[page] and name and not name:match("^_") and not name:match("%._") then
      local link = "/nbs/" .. modules[page] .. "#" .. anchor
      add(sym, link)
      add(module .. "." .. name, link)
      homes[name] = homes[name] or {}
      homes[name][module] = link
    end
  end
  file:close()
end

load()
local input = quarto and quarto.doc.input_file or PANDOC_STATE.input_files[1] or ""
local here = input:lower():match("(%w+)%.%w+$") -- 05_inference.ipynb → inference
local in_register = input:match("assumptions/A%-%d+[^/]*$")

-- The address of a bare name: this page's own, or that of the only module that has it.
local function home(name)
  local at = homes[name] or {}
  local module, address = next(at)
  if at[here] then return at[here] end
  if module and not next(at, module) then return address end
end

local function address(text)
  local name = text:gsub("%b()$", "")
  if not name:match("^[%a_][%w_]*[%w_%.]*$") then return end
  if names[name] then return names[name] end
  if name == text and not name:match("[%u_%.]") then return end
  local class = name:match("^(.*%u%w*)%.[%w_]+$") -- a field, or a method that was added later, leads to its class
  return home(name) or class and (names[class] or home(class))
end

local function record(text)
  local path, rest = text:match("^(nbs/[%w_%./-]+%.json)([:,;.]?)$")
  if not path then path, rest = text:match("^(nbs/[%w_%./-]+%.ipynb)([:,;.]?)$") end
  if path then return { pandoc.Link({ pandoc.Str(path) }, "/" .. path), pandoc.Str(rest) }, false end
end

-- A value of the front matter as one writes it on the command line, and as inlines.
local function say(v)
  if type(v) == "table" and v[1] and v[1].t == nil then
    local out = {}
    for i, x in ipairs(v) do out[i] = say(x) end
    return table.concat(out, ",")
  end
  return type(v) == "boolean" and tostring(v) or pandoc.utils.stringify(v)
end

local function lines_of(values, inlines)
  local out = pandoc.List()
  for i, v in ipairs(values) do
    if i > 1 then out:insert(pandoc.LineBreak()) end
    out:extend(inlines(v))
  end
  return #out > 0 and out or { pandoc.Str("–") }
end

local function facts(meta)
  local switched = say(meta.field) ~= "none"
  local function code(v) return { switched and pandoc.Code(say(v)) or pandoc.Str(say(v)) } end
  local fields = (meta.field[1] or {}).t and { meta.field } or meta.field
  local function event(e) return { pandoc.Str(say(e.date) .. ": " .. say(e.what)) } end
  return {
    { "Status", { pandoc.Str(say(meta.status)) } },
    { "In the paper", meta.paper },
    { "Switch", switched and lines_of(fields, code) or { pandoc.Str("none. " .. say(meta.reason)) } },
    { "Chosen", code(meta.chosen) },
    { "Could also be", lines_of(meta.alternatives, code) },
    { "Evidence", lines_of(meta.evidence, function(v) return v end) },
    { "History", lines_of(meta.history, event) },
  }
end

local function block(meta)
  local rows = {}
  for i, fact in ipairs(facts(meta)) do
    rows[i] = { { pandoc.Plain({ pandoc.Strong({ pandoc.Str(fact[1]) }) }) }, { pandoc.Plain(fact[2]) } }
  end
  local left = pandoc.AlignLeft
  return pandoc.utils.from_simple_table(pandoc.SimpleTable({}, { left, left }, { 0, 0 }, { {}, {} }, rows))
end

local linked = {
  traverse = "topdown",
  Link = function(el)
    if not el.target:match("^%a+://") then el.target = el.target:gsub("README%.md", "index.qmd") end
    return el, false
  end,
  Header = function(el) return el, false end,
  Code = function(el)
    local link = address(el.text)
    if link then return pandoc.Link({ el }, link), false end
  end,
  Str = function(el) return record(el.text) end,
}

local function displayed(el)
  if el.mathtype ~= "DisplayMath" then return end
  local text, number = el.text:match("^(.-)%s*\\tag(%b{})%s*$")
  el.text = text or el.text
  local label = number and pandoc.Span({ pandoc.Str("(" .. number:sub(2, -2) .. ")") }, { class = "number" })
  return pandoc.Span({ el, label }, { class = "equation" })
end

local function boxed(el)
  return pandoc.Div({ el }, { class = "table-box" })
end

return {
  {
    Pandoc = function(doc)
      if in_register then table.insert(doc.blocks, 1, block(doc.meta)) end
      return doc
    end,
  },
  linked,
  { Math = displayed, Table = boxed },
}
